"""Numbers by which the kernels that read text and their callers understand each other."""

# faults
FINE, EMPTY, NO_NUMBER, FEWER, MORE, NEGATIVE, TOO_LARGE, NO_INDEX, NO_COLON, NOT_ASCENDING, HUGE_INDEX = range(11)

LABEL, WEIGHT, UNUSED = -1, -2, -3  # slots of a column; others are the number of a feature
SPACE, TAB, NEWLINE, RETURN, QUOTE, HASH, COLON = (ord(c) for c in ' \t\n\r"#:')
LARGEST_INDEX = (1 << 31) - 2
