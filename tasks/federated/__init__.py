"""The steps of a federation: what a pod does when it is asked, what the modeller does with the answers, and where both meet."""
