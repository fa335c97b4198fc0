"""Ask for an image; get one from the best provider that can serve now, within your time limit."""
