"""Learns a filter of Learn2PD from what an oracle accepts."""
