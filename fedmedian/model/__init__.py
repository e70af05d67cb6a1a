"""A model's named arrays as one flat vector, in blocks."""
