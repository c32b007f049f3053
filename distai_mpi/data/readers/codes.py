"""Codes that kernels which parse text exchange with their callers."""

# faults
FINE, EMPTY, NO_NUMBER, FEWER, MORE, NEGATIVE, TOO_LARGE, NO_INDEX, NO_COLON, NOT_ASCENDING, HUGE_INDEX = range(11)
MISSING, OPEN_QUOTE, NO_BOOLEAN, NO_DATE, NOT_EMPTY, HASHED = range(11, 17)

# of day and month in dates as 12/31/2020 or 31/12/2020; ASK_ORDER: it is not known yet;
# SEE_ORDER: fields are read to see what they tell of it
NO_ORDER, MONTH_FIRST, DAY_FIRST, ASK_ORDER, SEE_ORDER = range(5)

# slots of a column: from 0 on the number of a feature; below UNUSED, `text_slot`
LABEL, WEIGHT, UNUSED = -1, -2, -3
KEEP_FEATURES, KEEP_LABEL = 1, 2  # which missing values become NaN; sums of these

# what stands for a value that is not there: what pandas.read_csv takes for it, and the ? of the UCI repository
MISSING_WORDS = (
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
    "NaN",
    "None",
    "n/a",
    "nan",
    "null",
    "?",
)
MISSING_NUMBERS = ("-",)  # likewise where a number belongs; among words it may be one

# as numbers: an ord() in a kernel takes half a second to compile
SPACE, TAB, NEWLINE, RETURN, QUOTE, HASH, COLON = b' \t\n\r"#:'
ZERO, PLUS, MINUS, POINT, COMMA, SLASH = b"0+-.,/"
LOWER_A, LOWER_C, LOWER_E, LOWER_I, LOWER_Q, LOWER_T, LOWER_U, LOWER_Z, UPPER_E, UPPER_Z = b"aceiqtuzEZ"
LARGEST_INDEX = (1 << 31) - 2


def text_slot(which: int) -> int:
    """Slot of the ``which``-th column of which the kernel tells where the text of the fields stands."""
    return UNUSED - 1 - which
