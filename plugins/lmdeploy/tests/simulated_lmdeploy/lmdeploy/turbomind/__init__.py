"""The backend in C++."""
