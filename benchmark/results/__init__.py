"""Reading results: evidence, cards, statistics and the survey's figures; needs pandas, never PyTorch."""
