#ifndef INTRUDER_H
#define INTRUDER_H

/* As the root of a guest without an agent: to what the view of the tag "files" hides or protects. */
void intrude(void);

#endif
