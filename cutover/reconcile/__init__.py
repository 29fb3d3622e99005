"""Comparing the two sides of a service row by row, confirming what differs, and mending it (design 5.4)."""
