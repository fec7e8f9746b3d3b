"""Policy put on a built model from outside: which device, which precision, what stays where."""
