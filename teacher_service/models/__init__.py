"""ONNX models as teachers: how they are described, fed, checked, assessed and run."""
