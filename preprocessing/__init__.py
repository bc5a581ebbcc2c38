"""Raw video to aligned features: face crops, log-mel, words with times and their vectors, all on one clock."""
