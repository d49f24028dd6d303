"""Pagoda under other engines of distribution."""
