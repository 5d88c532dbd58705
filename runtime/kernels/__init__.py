"""Operations with a reference and accelerated versions."""
