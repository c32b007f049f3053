"""What things cost: closed forms of communication, and the speed of this machine."""
