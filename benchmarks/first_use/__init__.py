"""The first hour: the demo, and three journeys as typed."""
