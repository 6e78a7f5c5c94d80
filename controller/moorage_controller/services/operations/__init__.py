"""Operations: record them, queue them, run them on a host, and follow them to their end."""
