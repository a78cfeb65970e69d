"""Files of weights: opened safely, fitted to a model, written again."""
