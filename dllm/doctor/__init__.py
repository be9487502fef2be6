"""What of a machine or a checkpoint would be slow or fail, found without loading a weight."""
