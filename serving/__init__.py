"""The HTTP door: an ingress that checks and answers, generators that hold the engines."""
