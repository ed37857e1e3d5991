"""What a person sees of an output: a table, a page, the pictures of a row."""
