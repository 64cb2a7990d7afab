"""Operations, bytes and memory of a request, from shapes."""
