"""CARAFE detectors in plain PyTorch, with mmdetection's state_dict keys."""
