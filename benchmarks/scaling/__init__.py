"""Measurements of sampling and evaluation at scale: interruptions, several processes, memory."""
