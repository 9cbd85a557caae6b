TUNED = ("AdamW, tuned", "SGD, tuned")
def write(*a): print("later")
