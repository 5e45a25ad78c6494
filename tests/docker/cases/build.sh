# docker build: BuildKit's steps, each in a machine of its own, and once the builder before it.

# Builds the working directory as the image `built`; prints what its steps print.
build() {
	local status=0
	docker build --progress plain --tag built "$@" . >log 2>&1 || status=$?
	sed -nE 's/^#[0-9]+ [0-9]+\.[0-9]+ //p' log
	[[ $status == 0 ]] || { grep -E '^ERROR' log && return "$status"; }
}
cached() { # how many steps were not done again
	grep -c '^#[0-9]* CACHED' log || true
}

#: FROM, WORKDIR, COPY, ADD, RUN (both forms), ENV, ARG, EXPOSE, ENTRYPOINT, CMD, VOLUME, LABEL, USER, HEALTHCHECK, STOPSIGNAL, SHELL
instructions() {
	mkdir folder && echo copied >folder/file && echo added >added && tar -cf archive.tar added
	cat >Dockerfile <<-'END'
		FROM busybox
		ARG GIVEN=default
		LABEL sea=north
		ENV TIDE=high PLACE=/srv
		WORKDIR $PLACE/work
		COPY folder here
		COPY --chown=1000:1000 --chmod=640 folder/file owned
		ADD archive.tar .
		RUN echo "$TIDE $GIVEN $(pwd) $(id -u)" && cat here/file added && stat -c '%u %a' owned
		RUN ["sh", "-c", "echo exec form >form"]
		SHELL ["/bin/sh", "-ec"]
		RUN echo $0; cat form
		USER 1000
		RUN id -u; touch /forbidden 2>&1 || echo "status $?"
		EXPOSE 80/tcp
		VOLUME /data
		STOPSIGNAL SIGUSR1
		HEALTHCHECK --interval=9s CMD true
		ENTRYPOINT ["echo", "entry"]
		CMD ["point"]
	END
	build --build-arg GIVEN=argument
	docker inspect built --format '{{json .Config.Env}} {{json .Config.Labels}} {{.Config.User}} {{json .Config.ExposedPorts}}
		{{json .Config.Volumes}} {{.Config.StopSignal}} {{json .Config.Healthcheck}} {{.Config.WorkingDir}} {{json .Config.Shell}}'
	docker run --rm built
	docker run --rm --entrypoint sh built -c 'pwd; find . | sort; ls -ld /etc/hosts | cut -c1-10'
}

#: a step leaves in the image what it has written, and nothing of its own: owners, modes, links, attributes, deletions
layers() {
	cat >Dockerfile <<-'END'
		FROM busybox
		RUN mkdir -m 2750 /made && echo text >/made/file && ln -s file /made/link && ln /made/file /made/hard \
			&& mkfifo /made/pipe && chown -R 7:8 /made && chmod 4711 /made/file && touch -d @1000 /made/file
		RUN rm -r /home/app && echo more >>/made/file && mv /made/link /made/moved
	END
	build
	mkdir saved && docker save built | tar -xC saved
	for blob in saved/blobs/sha256/*; do tar -tf "$blob" 2>/dev/null || true; done | grep -v bin/ | sort
	docker run --rm built sh -c 'cd /made; stat -c "%n %F %a %u %g %h %Y" file moved hard pipe . | sed "s/ [0-9]\{10\}$//"
		cat file; readlink moved; ls /home; ls -A /etc /run'
}

#: multi-stage builds, `COPY --from` a stage and an image, `--target`, parallel stages
stages() {
	cat >Dockerfile <<-'END'
		FROM busybox AS one
		RUN sleep 1; echo one >/part
		FROM busybox AS two
		RUN sleep 1; echo two >/part
		FROM busybox AS unused
		RUN false
		FROM scratch AS last
		COPY --from=busybox /bin/busybox /bin/cat
		COPY --from=one /part /one
		COPY --from=two /part /two
		CMD ["/bin/cat", "/one", "/two"]
	END
	build
	docker run --rm built
	build --target one
	docker run --rm built cat /part
}

#: the build cache, and what makes a step be done again: a changed file, a changed argument, `--no-cache`
cache() {
	echo 1 >file
	cat >Dockerfile <<-'END'
		FROM busybox
		RUN echo first
		ARG WHAT=nothing
		COPY file .
		RUN echo "second $WHAT $(cat file)"
	END
	build
	build
	echo "cached $(cached)"
	echo 2 >file
	build
	echo "cached $(cached)"
	build --build-arg WHAT=argument
	echo "cached $(cached)"
	build --no-cache
	echo "cached $(cached)"
}

#: `.dockerignore`, a Dockerfile of another name, one from standard input
dockerignore() {
	mkdir -p kept/deep && touch kept/a kept/b.log kept/deep/c.log secret
	printf '*\n!kept\n**/*.log\n!kept/deep/c.log\n' >.dockerignore
	printf 'FROM busybox\nCOPY . /all\nRUN find /all | sort\n' >Other
	build --file Other
	printf 'FROM busybox\nRUN echo from standard input\n' | docker build --progress plain - 2>&1 | grep -c '^#.*from standard input'
}

#: `RUN --mount`: `type=cache` is there again in the next build, `type=bind` from another stage and the context, `type=tmpfs`
mounts() {
	echo context >file
	cat >Dockerfile <<-'END'
		FROM busybox AS other
		RUN mkdir /from && echo stage >/from/file
		FROM busybox
		ARG NUMBER
		RUN --mount=type=cache,target=/cache echo $NUMBER >>/cache/file && cat /cache/file
		RUN --mount=type=bind,from=other,source=/from,target=/other --mount=type=bind,target=/context \
			cat /other/file /context/file; touch /other/new 2>&1 || echo "status $?"
		RUN --mount=type=tmpfs,target=/scratch touch /scratch/file && grep -c '/scratch tmpfs' /proc/mounts
		RUN ls -d /cache/* /other/* /context/* /scratch/* 2>&1 || true
	END
	build --build-arg NUMBER=1
	build --build-arg NUMBER=2
}

#: `--secret`: there for its step, and in no layer
secrets() {
	echo water >secret
	cat >Dockerfile <<-'END'
		FROM busybox
		RUN --mount=type=secret,id=it cat /run/secrets/it && stat -c %a /run/secrets/it
		RUN --mount=type=secret,id=it,target=/else,uid=1000,mode=0440 stat -c '%u %a' /else
		RUN ls /run/secrets 2>&1 || true
	END
	build --secret id=it,src=secret
	docker save built | grep -ac water || true
}

#: a step reaches the network, by an address; `--network none` does not; `--add-host`, `/etc/hosts`, the host's name
network() {
	local gateway
	gateway=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}')
	mkdir served && echo here >served/index.html
	busybox httpd -p "$gateway:8000" -h served
	cat >Dockerfile <<-END
		FROM busybox
		ARG AGAIN
		RUN wget -qO- http://$gateway:8000/; wget -qO- http://tower:8000/; ls /sys/class/net | sort | tr '\n' ' '
		RUN hostname; grep -c tower /etc/hosts
	END
	build --add-host "tower:$gateway"
	printf 'FROM busybox\nRUN ls /sys/class/net; nc -w 2 %s 8000 </dev/null || echo unreachable\n' "$gateway" >Dockerfile
	build --network none | grep -v "can't connect"
	pkill -f "httpd -p $gateway:8000"
}

#: a step is on the kernel that containers have, with the capabilities and the profile that they have with runc
kernel() {
	cat >Dockerfile <<-'END'
		FROM busybox
		RUN uname -r >/release; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/1/comm; id
	END
	build
	[[ $(docker run --rm built cat /release) == $(docker run --rm busybox uname -r) ]] && echo "the containers' kernel"
}

#: a step that fails: its exit code and its words; a program that is not there; a build that is ended
failures() {
	printf 'FROM busybox\nRUN echo before; exit 7\nRUN echo never\n' >Dockerfile
	build || echo "status $?"
	printf 'FROM busybox\nRUN ["no-such-program"]\n' >Dockerfile
	build >said || echo "status $?"
	grep -o 'executable file not found' log | sort -u
	printf 'FROM busybox\nRUN echo begun; sleep 1000\n' >Dockerfile
	docker build --progress plain . >ended 2>&1 &
	wait_for grep -q 'begun$' ended >/dev/null
	kill -TERM $!
	wait $! || echo "ended"
}

#: much output, here documents, `ONBUILD`, a step as another user with groups
more() {
	cat >Dockerfile <<-'END'
		FROM busybox
		RUN seq 20000 | tee /numbers | tail -n 1
		RUN <<-SCRIPT
			echo "of $(wc -l </numbers) lines"
			echo here >/document
		SCRIPT
		COPY <<-TEXT /text
			text
		TEXT
		USER app:extra
		RUN id; cat /document /text
		ONBUILD RUN echo on build
	END
	build
	docker tag built built:base
	echo 'FROM built:base' >Dockerfile
	build
}

#: the builder before BuildKit (`DOCKER_BUILDKIT=0`)
classic() {
	echo file >file
	printf 'FROM busybox\nENV TIDE=low\nCOPY file .\nRUN echo "$TIDE $(cat file)" | tee made\nCMD cat made\n' >Dockerfile
	DOCKER_BUILDKIT=0 docker build --tag built . 2>/dev/null | grep -vE '^( ---> |Sending|Removing|Successfully built)'
	docker run --rm built
	DOCKER_BUILDKIT=0 docker build --tag built . 2>/dev/null | grep -c 'Using cache'
}
