"""Pictures of samples, predictions and classes."""
