"""The Hugging Face hub: whether it can be reached, what its errors mean, what is pushed there."""
