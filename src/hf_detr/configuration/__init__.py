"""What `DetrConfig` is made from."""
