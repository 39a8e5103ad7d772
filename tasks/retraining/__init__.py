"""Retraining: is a new model wanted, is it better, and is it to be used; each answer kept with its reason."""
