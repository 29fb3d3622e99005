"""A model of the switch, explored state by state; see docs/model.md."""
