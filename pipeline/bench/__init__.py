"""How fast ONNX files run, how much memory they take, and what that costs."""
