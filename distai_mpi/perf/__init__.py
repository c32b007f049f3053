"""Costs of communication in closed form, laws of scaling, and the speed of this machine."""
