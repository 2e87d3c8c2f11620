#ifndef OBSERVER_ACTIONS_H
#define OBSERVER_ACTIONS_H

/* Runs the sub-command argv[0]; returns its exit code. */
int act(int argc, char **argv);

/* launch OPTIONS -- PROGRAM ARGS...: become the program in a given state. */
int launch(int argc, char **argv);

#endif
