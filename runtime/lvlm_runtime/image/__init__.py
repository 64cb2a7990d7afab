"""From a picture to the pixels of its tiles."""
