"""A trained network for programs that don't know this one: SavedModel, Keras, ONNX, model card."""
