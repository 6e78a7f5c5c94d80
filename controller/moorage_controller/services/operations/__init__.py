"""Operations: recorded, queued, run on a host, followed to their end."""
