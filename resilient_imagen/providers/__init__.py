"""Who makes pictures; beside each, the table that turns its failures into reasons."""
