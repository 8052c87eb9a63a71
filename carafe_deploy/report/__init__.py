"""What was found, to read: benchmarks and parity as HTML and Markdown, the demo and self check.

:mod:`.inputs` reads results, :mod:`.sections` makes sections of them (:mod:`.bench`,
:mod:`.operator_tables`, :mod:`.parity`), :mod:`.html` and :mod:`.markdown` write those.
"""
