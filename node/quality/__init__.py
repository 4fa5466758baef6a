"""How well the model does, and whether it still does: pure figures over what the store counted."""
