"""Accuracy of a bundle, pictures of what stays, ratios found on sample questions."""
