"""What purposes make of findings."""

from __future__ import annotations

import json

from carafe_deploy.doctor.findings import Diagnosis, make_purpose, missing, ok, optional, wrong

NUMPY = ok("NumPy", "2.4")
CV2 = missing("OpenCV", "not installed", "pip install it")
ORT = wrong("ONNX Runtime", "two of them", "pip uninstall one")


def test_a_purpose_lacks_what_is_needed_and_not_ok() -> None:
    purpose = make_purpose("detect", [ORT, optional(missing("GPU", "none"))], [NUMPY, CV2])
    assert purpose.lacks == ("OpenCV", "ONNX Runtime")
    assert not purpose.ready
    assert [finding.name for finding in purpose.findings] == ["ONNX Runtime", "GPU"]


def test_a_purpose_can_do_without_what_is_optional() -> None:
    assert make_purpose("detect", [NUMPY, optional(CV2), optional(ORT)]).ready


def test_only_what_is_wrong_fails() -> None:
    assert not Diagnosis((make_purpose("a", [NUMPY, CV2]),)).wrong
    assert Diagnosis((make_purpose("a", [NUMPY, optional(ORT)]),)).wrong == (optional(ORT),)


def test_json() -> None:
    data = Diagnosis((make_purpose("detect", [ORT], [CV2]),)).to_dict()
    assert json.loads(json.dumps(data)) == {
        "ok": False,
        "purposes": [
            {
                "name": "detect",
                "ready": False,
                "lacks": ["OpenCV", "ONNX Runtime"],
                "findings": [
                    {
                        "name": "ONNX Runtime",
                        "status": "wrong",
                        "fact": "two of them",
                        "remedy": "pip uninstall one",
                        "needed": True,
                    }
                ],
            }
        ],
    }
