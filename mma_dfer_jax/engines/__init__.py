"""What answers: a trained model behind one interface, whatever computes it."""
