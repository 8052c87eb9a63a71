"""Measure a detector in every form it can take in one run, and its operators one by one."""

from __future__ import annotations
