"""What earlier tasks taught: a prior over the metrics of a new task, learned by `fit`, kept by `prior`."""
