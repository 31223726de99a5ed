"""What scores and features tell of images and labels: mistakes, copies, what to label next."""
