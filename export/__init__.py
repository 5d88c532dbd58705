"""Build time: official checkpoints -> torch modules -> ONNX graphs -> an engine bundle. Needs torch and onnx."""
