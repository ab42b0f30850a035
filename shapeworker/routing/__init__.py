"""Which shapes of a table a row belongs to, without asking each of them."""
