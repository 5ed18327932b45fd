"""The ops of the IR: type inference, evaluation in numpy and printing of each."""
