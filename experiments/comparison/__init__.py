"""Compares searchers on recorded surfaces: who comes near the best configuration with how many samples.

datasets    what was recorded, and which tasks are held out together
settings    what all runs of one file have in common
planning    what there is to run
training    what a searcher may learn from: everything outside the held-out fold, or a worse prior on purpose
protocol    one search of one task, judged by the noise-free truth
work        runs it all, over processes; progress tells how far it is
results     the JSON file: resumable, written atomically
groups      which runs stand in one table; statistics, pairs: the numbers in it
table, figures   from the JSON alone
"""
