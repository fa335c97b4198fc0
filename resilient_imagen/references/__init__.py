"""Reference images: load, normalize and downscale them before they are sent."""
