"""The switch: the change of the writable side, and the way back."""
