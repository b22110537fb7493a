"""The parts of the network. They take plain numbers and tensors, never a configuration of the whole model."""
